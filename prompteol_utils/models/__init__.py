"""A name to a loaded model, and what it costs."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adapters": ["add_lora", "merge"],
        "download": ["fetch_model"],
        "loading": ["LoadedModel", "find_spec", "load_model"],
        "memory": [
            "Estimate",
            "parameters",
            "estimate_memory",
            "shape_of",
            "fitting_table",
            "forward_flops",
            "seconds_per_million",
            "check_fits",
        ],
        "registry": ["Wheel", "Shape", "ModelSpec", "get_spec", "MODELS"],
        "tiny": ["tiny_model", "save_tiny"],
    },
)
