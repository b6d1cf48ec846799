"""Words and sentences: captions, edit directions, target prompts, and what they need to know of English.

captioning  captions from BLIP
directions  sentence banks and edit directions
prompts     target prompts of a caption
english     nouns, adjectives, articles
wordnet     WordNet's own files
fill_mask   words that BERT expects in a gap
text        phrases and lists in any script
"""
