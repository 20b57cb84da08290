"""The prompt: what the language model reads before the speech, with the language spoken in it where one is named.

Promises: the same language gives the same prompt, by whichever code or name it is called; a template without
`{language}` is the prompt of every language. It does not know tokens, or which languages a model was trained on.
"""

import re

PLACE = "{language}"
"""Where a template names the language."""


def fill_prompt(template: str, language: str | None = None) -> str:
    """The prompt for a language.

    Args:
        template: may hold `{language}`, as in "transcribe the following {language} audio: ".
        language: a code such as `de` or `de-CH`, or a name; where it is not known, the template says nothing of it.
    """
    if PLACE not in template:
        return template
    if not language:
        return re.sub(r"\{language\} ?", "", template)
    return template.replace(PLACE, _language_name(language))


def _language_name(language: str) -> str:
    """The English name of one of Whisper's hundred languages, in lower case; of any other, what it is called."""
    # Imported here: only prompts that name a language need transformers.
    from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

    called = language.strip().lower()
    code = TO_LANGUAGE_CODE.get(called, re.split("[-_]", called)[0])
    return str(LANGUAGES.get(code, called))
