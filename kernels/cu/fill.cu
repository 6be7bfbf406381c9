// Fills a run of f32 elements with one value.
//
// A block is any number of threads, the grid any number of blocks: each thread writes every (threads of the grid)-th
// element, so neighbours write neighbours. Elements behind `count` are not touched.

struct FillArgs {
    float *to;                 // [count], device memory
    unsigned long long count;  // elements
    float value;
    unsigned int reserved;     // makes the size a multiple of the alignment without padding; 0
};

extern "C" __global__ void fill_f32(const __grid_constant__ FillArgs args) {
#if __CUDA_ARCH__ >= 900
    // The launch before this one may still run where launches overlap: nothing is written before it is done.
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
    const unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < args.count; i += stride) {
        args.to[i] = args.value;
    }
}
