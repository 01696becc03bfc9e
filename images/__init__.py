"""Where images come from.

batches             images as a model receives them: on the device, a batch at a time
datasets            MNIST, Fashion-MNIST, scikit-learn's digits, or your own folder
listing             which files of your own folder count
folder              what they are, and their pixels as a viewer shows them
split               which training images validate
canvas              translated and cluttered images, drawn a batch at a time
one_image           any picture, as the images that a model was trained on
"""
