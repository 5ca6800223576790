"""Synthetic chats beyond what rules over numbers give (sections 4.3.1, 4.3.4 and 4.3.5).

Each kind is one file that turns documents, folders or prompts into `Chat`s and says of everything else why it was
dropped; `stage.py` makes what a recipe asks for.
"""
