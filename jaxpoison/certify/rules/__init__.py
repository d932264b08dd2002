"""One file a rule: how votes become a prediction, and how many cells may change before it does."""
