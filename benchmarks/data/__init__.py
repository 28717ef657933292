"""The data of the study, and the scripts that build them."""
