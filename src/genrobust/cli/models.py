"""`genrobust models`: the shipped models."""

from .._console import say, show
from .._table import TextColumn, TextTable
from .plugins import PluginOption, load_plugins

__all__ = ["models"]


def models(plugin: PluginOption = None) -> None:
    """List the shipped models with their measured accuracy."""
    from ..zoo import list_models, model_card
    from ..zoo.registered import MODELS, Composition

    load_plugins(plugin)
    numbers = ("clean accuracy", "weights", "epoch", "hours")
    table = TextTable("model", "data set", *(TextColumn(title=title, right=True) for title in numbers))
    for name, dataset in list_models():
        card = model_card(name, dataset=dataset)
        table.add_row(
            name,
            dataset,
            f"{card['clean_accuracy']['value']:.1%} of {card['clean_accuracy']['images']}",
            f"{card['parameters'] / 1e6:.2f} M",
            f"{card['best_epoch']}/{card['epochs']}",
            f"{card['hours']:.2f}",
        )
    show(table)
    for path in plugin or ():
        for name in MODELS.of_plugin(path):
            found = MODELS.get(name)
            if isinstance(found, Composition):
                say(f"{name} is registered by {path}: it is put together from {' and '.join(found.parts)}")
            else:
                say(f"{name} is registered by {path}: {found.train_command('digits')}")
