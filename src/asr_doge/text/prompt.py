"""The prompt, which the language model reads before the speech and which may name the language spoken.

Promises: a language gives the same prompt whether it is given as a code or as a name; a template without `{language}`
is the prompt for every language. It does not know tokens, or which languages a model was trained on.
"""

import re

PLACE = "{language}"
"""The placeholder for the language in a template."""


def fill_prompt(template: str, language: str | None = None) -> str:
    """The prompt for a language.

    Args:
        template: may hold `{language}`, as in "transcribe the following {language} audio: ".
        language: a code such as `de` or `de-CH`, or a name; if it is unknown, the placeholder is removed.
    """
    if PLACE not in template:
        return template
    if not language:
        return re.sub(r"\{language\} ?", "", template)
    return template.replace(PLACE, _language_name(language))


def _language_name(language: str) -> str:
    """The English name, in lower case, of one of Whisper's hundred languages; any other language as it was given."""
    # Imported here: only prompts that name a language need transformers.
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    called = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(called, re.split("[-_]", called)[0])
    return str(LANGUAGES.get(code, called))
