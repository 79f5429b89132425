"""From words to prototypes."""
