"""The models that five Chinese articles on large language models print, under their names and signatures, made to work.

    fit                 Adam on mini-batches, and the loss of numbers: what they share
    layers              a dense layer whose weight may be sparse, and the two-layer expert
    feature_experts     《稀疏专家模型》 §5.2: SparseExpertModel(num_experts), each expert reads some of the features
    sparse_gate         the untitled document on the 稀疏门控 (sparse gate), §5: SparseExpertModel(num_experts, input_dim,
                        output_dim, k)
    big_language_model  《大语言模型原理基础与前沿：通过稀疏MoE扩展视觉语言模型》 §3: big_language_model, mix_of_experts,
                        sparse_matrix, visual_language_model
    lstm_experts        the same, §5.2: experts that are an embedding, an LSTM and a softmax
    sparse_weights      《大语言模型原理基础与前沿：为什么采用稀疏专家模型》 §6: sparse_matrix_multiplication,
                        create_sparse_embedding, create_sparse_experts, and a language model whose matrices are stored,
                        used and trained sparse
    (the fifth article's SparseMoeModel is in `tinymoe.estimator`)

None of the printed versions does what its text says. Each file tells what was wrong and what is done instead;
`tests/documents/test_document_models.py` runs what can be run of them and shows how it fails.
"""
