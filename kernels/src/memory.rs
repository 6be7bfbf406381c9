//! Freed memory that the allocator keeps.

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
