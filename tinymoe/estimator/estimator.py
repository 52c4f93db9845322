"""A mixture of experts for tables of numbers, in the style of scikit-learn: regression and classification.

    model = SparseMoeModel()
    model.train(data, labels, epochs=100, learning_rate=0.01)
    predictions = model.predict(data)

A linear gate sends each row to k of several small networks (`network.py`). In training each of them answers alone, and
those that answer well are made responsible for the row. At prediction nobody knows the label, so the gate decides: the
answers are weighed by it. For classes both are the same mixture: the loss, but for `balance`, is −ln of
`predict_proba` at the label.

The calls are those of the untitled document on sparse experts as a new view of the LLM, §5.
"""

import math
import numbers
import sys
import warnings
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any, Self

import numpy as np

from .. import ops
from ..data.rows import Rows
from ..optim.hyperparameters import NotFinite, Training, fresh
from ..optim.trainer import Trainer
from ..types import Array
from .network import Choice, MixtureObjective, initialize, network


@dataclass(eq=False, kw_only=True)
class SparseMoeModel:
    """Sparse mixture of small networks; labels that are not floats are classes, floats are numbers to approach.

    experts, k      how many there are, and how many run for a row; with k = 1 only `balance` teaches the gate
    hidden          ReLU units per expert
    epochs, learning_rate, batch_size    of AdamW; the rate falls to 0 along half a cosine
    weight_decay    an epoch takes about rate · weight_decay of every weight away, however many rows it has
    balance         weight of the load-balance loss
    task            "auto", "classification" or "regression" (for whole numbers that are no classes)
    random_state    seed of initial weights and order of rows: on one machine the same seed gives the same model to the bit

    After training: `n_features_in_`, `classes_` (of a classifier), `loss_curve_` (mean loss of each epoch), `network_`.
    """

    experts: int = 4
    k: int = 2
    hidden: int = 32
    epochs: int = 100
    learning_rate: float = 0.01
    batch_size: int = 32
    weight_decay: float = 10.0
    balance: float = 0.1
    task: str = "auto"
    random_state: Any = 0

    def train(self, data: Any, labels: Any, epochs: int | None = None, learning_rate: float | None = None) -> Self:
        """`fit`, with the number of epochs and the learning rate set first, if given. Returns the model."""
        given = {"epochs": epochs, "learning_rate": learning_rate}
        return self.set_params(**{name: value for name, value in given.items() if value is not None}).fit(data, labels)

    def fit(self, X: Any, y: Any) -> Self:
        """Learn from X (N, D) and labels y (N,), or (N, C) numbers, from the start. Returns the model."""
        self._check_params()
        x = _table(X)
        if not x.size:
            raise ValueError(
                f"X has {len(x)} row(s) and {x.shape[1]} feature(s) (shape={x.shape}) while a minimum of 1 is required."
            )
        targets, outputs = self._targets(y, len(x))
        self.n_features_in_ = x.shape[1]
        self._x_mean, self._x_scale = _moments(x)
        rng = np.random.default_rng(self.random_state)
        self.network_ = initialize(rng, x.shape[1], self.hidden, outputs, self.experts)
        self._k = self.k  # what `predict` goes by, whatever `set_params` says later
        self.loss_curve_ = list(self._epochs((x - self._x_mean) / self._x_scale, targets, rng))
        return self

    def _targets(self, y: Any, n: int) -> tuple[Array, int]:
        """What the network is trained on, and how many outputs it needs for that."""
        y = _labels(y, n)
        self._task = ("regression" if y.dtype.kind == "f" else "classification") if self.task == "auto" else self.task
        self.__dict__.pop("classes_", None)  # of an earlier training
        if self._task == "regression":
            y = _numbers(y, "y")
            self._y_shape = y.shape[1:]
            self._y_mean, self._y_scale = _moments(y.reshape(n, -1))
            return (y.reshape(n, -1) - self._y_mean) / self._y_scale, len(self._y_mean)
        if y.size != n:
            raise ValueError(f"y has shape {y.shape}; classification needs one label for each row")
        if y.ndim == 2:
            warning = _of_sklearn("DataConversionWarning", UserWarning)
            warnings.warn(
                "A column-vector y was passed when a 1d array was expected: pass y.ravel()", warning, stacklevel=3
            )
        if y.dtype.kind == "f" and (_numbers(y, "y") % 1).any():
            raise ValueError(
                "Unknown label type: y has fractions (continuous); classes are whole numbers, strings or bools"
            )
        self.classes_, targets = np.unique(y.ravel(), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]}; classification needs two or more")
        return targets, len(self.classes_)

    def _epochs(self, x, targets, rng):
        """Train; yields the mean loss of each epoch."""
        rows, objective = Rows((x, targets)), MixtureObjective(self.k, self.balance)
        per_epoch = -(-len(rows) // self.batch_size)
        training = Training(
            batch_size=self.batch_size,
            lr=self.learning_rate,
            final_lr=0.0,
            warmup=0,
            decay_steps=self.epochs * per_epoch,
            beta2=0.999,
            weight_decay=self.weight_decay / per_epoch,
            clip=0.0,
        )
        with Trainer(fresh(self.network_, training), objective, training) as trainer:
            for epoch in range(1, self.epochs + 1):
                try:
                    total = sum(trainer.step(batch).loss * len(batch) for batch in rows.batches(self.batch_size, rng))
                except NotFinite:
                    raise ValueError(
                        f"the loss is not finite in epoch {epoch}; "
                        f"learning_rate is {self.learning_rate}, choose a smaller one"
                    ) from None
                yield total / len(rows)

    def predict(self, X: Any) -> Array:
        """The most probable class of each row; or its number, in the shape that y had."""
        y = self._mixture(X)
        if self._task == "classification":
            return self.classes_[y.argmax(1)]
        return (y * self._y_scale + self._y_mean).reshape(len(y), *self._y_shape)

    @property
    def predict_proba(self) -> Any:
        """The probability of each class, (N, C), in the order of `classes_`; a regression lacks this method."""
        if getattr(self, "_task", self.task) == "regression":
            raise AttributeError("predict_proba is for classes; this model predicts numbers")
        return self._mixture

    def score(self, X: Any, y: Any) -> float:
        """The share of rows whose class is right; or R², 1 − (squared error) / (that of the mean), mean over targets."""
        predicted = self.predict(X)
        y = _labels(y, len(predicted))
        if y.size != predicted.size:
            raise ValueError(f"y has shape {y.shape} and the prediction {predicted.shape}; they must be the same")
        y = y.reshape(predicted.shape)
        if self._task == "classification":
            return float((predicted == y).mean())
        y = _numbers(y, "y")
        off, spread = ((a * a).sum(0) for a in (y - predicted, y - y.mean(0)))
        varies = spread > 0  # for a constant target R² is 1 or 0 by convention
        return float(np.where(varies, 1 - off / np.where(varies, spread, 1), off == 0).mean())

    def route(self, X: Any) -> tuple[Array, Array]:
        """Which experts each row goes to, best first, (N, K), and how much each counts there, (N, K)."""
        _, choice = self._answers(X)
        return choice.indices, choice.weights

    def _answers(self, X: Any) -> tuple[Array, Choice]:
        """The experts' answers (M, C) grouped by expert, and the gate's choice."""
        if not hasattr(self, "network_"):
            error = _of_sklearn("NotFittedError", ValueError)
            raise error(f"this {type(self).__name__} is not trained yet; call train or fit first")
        x = _table(X)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features as input"
            )
        (outputs, _, choice), _ = network((x - self._x_mean) / self._x_scale, self.network_, self._k)
        return outputs, choice

    def _mixture(self, X: Any) -> Array:
        """Σ_j w_nj answer_j(x_n), (N, C): class probabilities, or standardised numbers."""
        answers, choice = self._answers(X)
        if self._task == "classification":
            answers, _ = ops.softmax(answers)
        return ops.combine(answers, choice.weights, choice.assignment)[0]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def set_params(self, **params: Any) -> Self:
        """Change parameters for the next training. Raises ValueError for an unknown name."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"there is no parameter {name!r}; allowed are {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def _check_params(self) -> None:
        """Raises ValueError for a parameter that makes no sense."""
        for name, least in {"experts": 1, "k": 1, "hidden": 1, "epochs": 0, "batch_size": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, numbers.Integral) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from {least}")
        if self.k > self.experts:
            raise ValueError(f"k is {self.k}; it must lie between 1 and the number of experts, {self.experts}")
        for name in ("learning_rate", "weight_decay", "balance"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a finite number, 0 or more")
        if self.learning_rate == 0:
            raise ValueError("learning_rate is 0; nothing would be learnt, so it must be above 0")
        if self.task not in ("auto", "classification", "regression"):
            raise ValueError(f"task is {self.task!r}; allowed are 'auto', 'classification' and 'regression'")

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks an estimator; nobody else calls it, so scikit-learn is imported only here."""
        sk = import_module("sklearn.utils")
        task = getattr(self, "_task", self.task)
        kind = {"classification": "classifier", "regression": "regressor"}.get(task)
        return sk.Tags(
            estimator_type=kind,
            target_tags=sk.TargetTags(required=True, multi_output=kind == "regressor"),
            classifier_tags=sk.ClassifierTags() if kind == "classifier" else None,
            regressor_tags=sk.RegressorTags() if kind == "regressor" else None,
        )


@dataclass(eq=False, kw_only=True)
class SparseMoeClassifier(SparseMoeModel):
    """A `SparseMoeModel` for classes only, which scikit-learn can tell before it is trained."""

    task: str = "classification"


@dataclass(eq=False, kw_only=True)
class SparseMoeRegressor(SparseMoeModel):
    """A `SparseMoeModel` for numbers only, which scikit-learn can tell before it is trained."""

    task: str = "regression"


def _numbers(values: Any, name: str) -> Array:
    """Real, finite numbers in float64."""
    if hasattr(values, "toarray"):
        raise TypeError(f"{name} is a sparse matrix; a dense array is needed: {name}.toarray()")
    if np.asarray(values).dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} is complex; only real numbers are allowed")
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinity; fill in or leave out these rows")
    return array


def _table(X: Any) -> Array:
    """Rows of features, (N, D)."""
    x = _numbers(X, "X")
    if x.ndim != 2:
        raise ValueError(
            f"X has shape {x.shape}; rows × features are needed. Reshape your data: "
            "X.reshape(1, -1) is one row, X.reshape(-1, 1) one feature"
        )
    return x


def _labels(y: Any, n: int) -> Array:
    """One label for each of n rows."""
    if y is None:
        raise ValueError("training requires y to be passed, but the target y is None")
    y = np.asarray(y)
    if y.dtype.kind == "O":
        y = np.asarray(y.tolist())  # strings or numbers in boxes
        if y.dtype.kind == "O":
            raise ValueError("y has labels of several kinds, or None; they must be all strings, or all numbers")
    if y.ndim not in (1, 2) or len(y) != n:
        raise ValueError(f"y has shape {y.shape} and X has {n} rows; one label for each row is needed")
    return y


def _moments(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each column; 1 for a constant one, so that dividing is safe."""
    mean, std = x.mean(0), x.std(0)
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)


def _of_sklearn(name: str, otherwise: type[Any]) -> type[Any]:
    """An exception of scikit-learn's where that is loaded: its users catch it by this class."""
    return getattr(sys.modules.get("sklearn.exceptions"), name, otherwise)
