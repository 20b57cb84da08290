"""How sure a model's CTC head is of speech in its own language and in others.

Example:
    python bench/unsure.py --model english --manifests ljspeech/dev.jsonl speechocean762/dev.jsonl --clips 80

Prints the mean probability of the head's labels over the sentences of each language that espeak-ng speaks, and
its lowest percentiles over the clips of each manifest. `unsure_below` in a checkpoint's config.json lies between.

Promises: the figure is the one that `asr_doge.inference.recordings` compares with `unsure_below`.
It does not know human speech in other languages.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr_doge.audio.reading import read_audio
from asr_doge.audio.synthesis import Voice, synthesize
from asr_doge.data.manifest import read_manifest
from asr_doge.decoding import DecodingConfig
from asr_doge.decoding.recognition import Recognizer
from asr_doge.errors import ASRDogeError
from asr_doge.models import load_model

SENTENCES = {
    "de": [
        "Gestern bin ich mit dem Zug nach München gefahren und habe meine Schwester besucht.",
        "Das Wetter wird morgen wieder schöner, sagte der alte Mann am Fenster.",
    ],
    "fr": [
        "Je voudrais une tasse de café et un croissant, s'il vous plaît.",
        "Hier soir nous avons mangé chez mes parents avec toute la famille.",
    ],
    "es": [
        "Mañana por la mañana vamos a la playa con los niños y los abuelos.",
        "No sé dónde he puesto las llaves de la casa de mi hermano.",
    ],
    "it": [
        "Domani mattina andremo al mercato a comprare la frutta e la verdura.",
        "Non ho mai visto una città così bella come quella di mia nonna.",
    ],
    "ru": [
        "Вчера вечером мы долго гуляли по набережной и говорили про отпуск.",
        "Завтра утром я поеду на работу на автобусе.",
    ],
    "tr": [
        "Annem bana her zaman doğruyu söylememi öğretti.",
        "Kardeşim her gün okula otobüsle gider ve çok kitap okur.",
    ],
    "fi": ["Huomenna menemme torille ostamaan hedelmiä ja vihanneksia.", "En tiedä missä avaimeni ovat."],
    "cmn": ["明天早上我们去市场买水果和蔬菜", "我昨天晚上没有睡好觉"],
    "en-us": [
        "Tomorrow morning we will go to the market to buy fruit and vegetables.",
        "I do not know where I have put the keys of my brother's house.",
    ],
    "en-gb": [
        "Yesterday evening we had dinner with the whole family at my parents.",
        "The weather will be better again tomorrow, said the old man at the window.",
    ],
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="english", help="checkpoint (default: english)")
    parser.add_argument("--manifests", type=Path, nargs="*", default=[], help="of speech that it should know")
    parser.add_argument("--clips", type=int, default=80, help="of each manifest, from its start (default: 80)")
    flags = parser.parse_args()
    try:
        loaded = load_model(flags.model, device="cpu")
        print(f"unsure_below: {loaded.model.config.unsure_below}")
        recognizer = Recognizer(loaded, DecodingConfig())
        for language, sentences in SENTENCES.items():
            found = [probabilities(recognizer, synthesize(sentence, Voice(language))) for sentence in sentences]
            print(f"{language:6} {np.concatenate(found).mean():.2f}")
        for manifest in flags.manifests:
            clips = [read_audio(clip.audio_path) for clip in read_manifest(manifest)[: flags.clips]]
            of_clips = [probabilities(recognizer, clip) for clip in clips]
            means = [float(labels.mean()) for labels in of_clips if len(labels)]
            lowest, low, median = np.percentile(means, [0, 5, 50])
            print(f"{manifest}: lowest {lowest:.2f}, 5 % below {low:.2f}, median {median:.2f}, {len(means)} clips")
    except ASRDogeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def probabilities(recognizer: Recognizer, waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of the best path's labels in a clip."""
    (recognition,) = recognizer.recognize([waveform])
    return np.array(recognition.label_probabilities)


if __name__ == "__main__":
    sys.exit(main())
