"""What a model and its training look like.

reports             what main.py hands to the trainer: the line printed, TensorBoard, saved glimpses, curves
tensorboard         TensorBoard's log
games               how a model plays: frame by frame, and where it looks in all test games
test_set            a whole test set: where the glimpses fall, how early the class is known
figures             what a model sees, frame by frame, and the curves of its training
files               figures and frames as PNG, GIF, MP4, and a page that plays them; images in a URL
own_images          what a model reads in pictures of your own
page                a page in the browser: draw a digit and see where a model looks
page_catch          its tab of the game: a model plays, and a person against it
record              where a model looked, as arrays
"""
