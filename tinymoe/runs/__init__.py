"""What a training run depends on and leaves behind: settings, its folder, the files in it, its pictures."""
