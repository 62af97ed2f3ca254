"""(Prompts, responses) to numbers: ``table.py`` lists the kinds, and ``fitting`` learns some of them from labels.

From below: how a kind is described (``spec``) and checked (``checked``), pretrained models and features, the kinds, the
table above them all, then what asks any scorer (``checking``) or makes one (``fitting``).
"""
