"""The paper's game, and the model as its player.

catch               the game: its rules, its frames, players that need no model
batches             new games in each epoch
player              a whole game played by the model, and the loss that trains it
"""
