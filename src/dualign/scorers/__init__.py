"""(Prompts, responses) to numbers: ``table.py`` lists the kinds, a file each or a row; ``fitting`` learns some from labels.

From below: how a kind is described (``spec``) and checked (``checked``), pretrained models and features, the kinds, the
table above them all, then what asks any scorer (``checking``) or makes one (``fitting``).
"""
