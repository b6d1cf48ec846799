"""Maps over an image, taken from the model itself.

differences  where its predictions differ between prompts: heat maps and edit masks
words        where it sees each word of a prompt
"""
