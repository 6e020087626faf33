/* What libraries of torch's CUDA build ask of CUDA's driver and runtime while nothing runs: one GPU, and no error.
   Preloaded under the name of the driver, libcuda.so.1, which a machine without a GPU does not have. */
typedef int status;

status cudaGetDevice(int *device) { *device = 0; return 0; }
status cudaSetDevice(int device) { return 0; }
status cudaGetDeviceCount(int *count) { *count = 1; return 0; }
status cudaGetLastError(void) { return 0; }
status cudaPeekAtLastError(void) { return 0; }
status cudaDeviceSynchronize(void) { return 0; }
status cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return 0; }
status cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { *stream = (void *)1; return 0; }
status cudaStreamQuery(void *stream) { return 0; }
status cudaStreamSynchronize(void *stream) { return 0; }
status cudaStreamIsCapturing(void *stream, int *capturing) { *capturing = 0; return 0; }
status cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
status cudaMemGetInfo(unsigned long *free, unsigned long *total) { *free = *total = 140ul << 30; return 0; }

/* c10::cuda::MaybeSetDevice(signed char): torch's guard around an operator. */
status _ZN3c104cuda14MaybeSetDeviceEa(signed char device) { return 0; }

status cuInit(unsigned flags) { return 0; }
status cuDriverGetVersion(int *version) { *version = 13000; return 0; }
status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 0; return 0; }
status cuCtxGetCurrent(void **context) { *context = 0; return 0; }
status cuGetErrorString(int error, const char **text) { *text = "there is no GPU"; return 0; }
