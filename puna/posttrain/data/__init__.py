"""Chats and preferences that people bring along: read, checked, labelled, thinned out and balanced (section 4.2.3).

It imports no torch until a reward model scores.
"""
