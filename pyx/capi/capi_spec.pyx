"""The layers of a cache, as its options say them: kvit.LayerSpec of structs that lie side by side."""
import kvit

from libc.stdint cimport int32_t, uintptr_t

from kvit._native.capi_cache_args cimport to_window
from kvit._native.capi_option cimport check_size, is_set, to_codec
from kvit._native.capi_rope cimport to_rope
from kvit._native.capi_tensor cimport to_tensor
from kvit.capi cimport KVIT_STORAGE_LAYERS, KVIT_STORAGE_PAGES, kvit_layer_spec, kvit_tensor

from kvit._native.capi_error import ArgumentError


cdef object to_layers(const kvit_cache_options *options):
    cdef const char *first = <const char *>options.specs
    cdef int32_t i
    if options.specs == NULL and options.num_specs == 0:
        return options.num_layers or 1
    if options.specs == NULL or options.num_specs < 1:
        raise ArgumentError(
            f"specs is {'NULL' if options.specs == NULL else 'there'} and num_specs {options.num_specs}; give as many "
            "specs as num_specs says, or NULL and 0 for layers that are alike"
        )
    if options.num_layers != 0:
        raise ArgumentError(
            f"num_layers is {options.num_layers} and num_specs {options.num_specs}; give num_layers 0 where specs say "
            "which layers there are"
        )
    found, scales = [], {}
    check_size(options.specs, sizeof(kvit_layer_spec), "kvit_layer_spec")
    for i in range(options.num_specs):
        found.append(to_spec(<const kvit_layer_spec *>(first + i * sizeof(kvit_layer_spec)), f"specs[{i}].", scales))
    return found


cdef object to_spec(const kvit_layer_spec *spec, str name, dict scales):
    check_size(spec, sizeof(kvit_layer_spec), "kvit_layer_spec")
    if spec.shares_kv not in (-1, 0, 1):
        raise ArgumentError(f"{name}shares_kv is {spec.shares_kv}; give 1, -1 for no, or 0 for what the cache does")
    is_unturned = is_set(spec.is_unturned, name + "is_unturned")
    if is_unturned and spec.rope != NULL:
        raise ArgumentError(f"{name}is_unturned is 1 and {name}rope is there; give one of them")
    return kvit.LayerSpec(
        count=spec.count or 1,
        kv_heads=spec.kv_heads or None,
        head_dim=spec.head_dim or None,
        v_dim=spec.v_dim or None,
        shares_kv=None if spec.shares_kv == 0 else spec.shares_kv == 1,
        k=to_codec(spec.k_dtype, name + "k_dtype"),
        v=to_codec(spec.v_dtype, name + "v_dtype"),
        k_scale=to_scale(spec.k_scale, name + "k_scale", scales),
        v_scale=to_scale(spec.v_scale, name + "v_scale", scales),
        rope=False if is_unturned else to_rope(spec.rope),
        window=to_window(spec.window_left, spec.window_right, name),
    )


cdef object to_scale(const kvit_tensor *scale, str name, dict scales):
    """One Tensor for all that a scale is given to: layers are alike where they have the same one."""
    found = scales.get(<uintptr_t>scale)
    if found is None:
        found = scales[<uintptr_t>scale] = to_tensor(scale, name, True)
    return found


cdef str to_storage(const kvit_cache_options *options):
    found = {KVIT_STORAGE_LAYERS: "layers", KVIT_STORAGE_PAGES: "pages"}.get(options.storage)
    if found is None:
        raise ArgumentError(
            f"storage is {options.storage}; give KVIT_STORAGE_LAYERS (0) or KVIT_STORAGE_PAGES (1)"
        )
    return found
