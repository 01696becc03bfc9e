"""Where images come from.

datasets            MNIST, Fashion-MNIST, scikit-learn's digits, or your own folder
canvas              translated and cluttered images, drawn a batch at a time
catch               the game: its rules, its frames
one_image           any picture, as the images that a model was trained on
"""
