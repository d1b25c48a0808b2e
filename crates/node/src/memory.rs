//! How the process's allocator behaves.

/// Lets threads share heaps. Buffers of a restore are allocated by some threads and freed by others; with a heap for each
/// thread, which is glibc's default, what is free in one heap is of no use to the next, and the process takes half as much again.
pub(crate) fn share_heaps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        /// Enough for two processors' worth of contention; more heaps gained nothing in restores.
        const HEAPS_MAX: libc::c_int = 2;
        // SAFETY: sets a number within the allocator; called before there are other threads.
        let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX) };
        debug_assert_eq!(done, 1, "this limit is known to every glibc");
    }
}

/// Gives memory that is free back to the system: an allocator keeps it otherwise, for ever.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: works within the allocator, under its own locks; what it answers is whether there was something to give.
    unsafe {
        libc::malloc_trim(0);
    }
}
