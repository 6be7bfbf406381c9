//! What the allocator keeps of freed memory.

/// glibc's `M_MMAP_THRESHOLD` (malloc.h): the size from which an allocation is a mapping of its own, which freeing unmaps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPING_THRESHOLD: std::ffi::c_int = -3;
/// glibc's own first value of it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_FROM_BYTES: std::ffi::c_int = 128 << 10;

/// Has every large allocation returned to the system when it is freed; a server calls it once, as it starts.
///
/// glibc begins so, but raises the size from which it does with each large block that is freed, up to 32 MiB: a server whose
/// models are loaded and unloaded by many threads then keeps a few blocks of every arena. Fixed, the size stays at 128 KiB.
/// (Over a hundred loads of a tiny model with 2 MiB of KV cache, 21 MB resident instead of 32 to 41.)
pub fn map_large_allocations() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(param: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        // SAFETY: this is glibc's own signature; it takes the allocator's lock itself and changes how later blocks are
        // allocated, never one that exists. A refusal (0) leaves things as they were.
        unsafe { mallopt(MAPPING_THRESHOLD, MAPPED_FROM_BYTES) };
    }
}

/// Gives it back to the system, where the allocator can be asked to (glibc).
///
/// glibc keeps freed memory in arenas, one for about each thread, and returns only what lies at an arena's end. A model is loaded
/// by whichever thread was asked and freed by several, so that each arena would keep the most that a load ever took of it: after
/// a few dozen loads, more than the model itself. It walks all arenas: call it when much has been freed at once, and never in a step.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: this is glibc's own signature; it takes the locks of the arenas itself and touches only what is free, so
        // that any thread may call it at any time.
        unsafe { malloc_trim(0) };
    }
}
