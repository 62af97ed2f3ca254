"""PKU-SafeRLHF-QA: single answers with a severity; refused, because its sibling holds the pairs."""

from dualign.data.formats.rows import Format, refused

PKU_SAFERLHF_QA = Format(
    "pku-saferlhf-qa",
    "single answers",
    ("prompt", "response", "severity_category", "safety_category"),
    refused,
    texts=("prompt", "response"),
    refusal="holds single answers (PKU-SafeRLHF-QA); use its sibling with pairs, PKU-SafeRLHF",
)
