/* Controls of the fake libcuda.so.1, beside the driver API. Look them up in the library (dlsym, ctypes). */
#ifndef GPULEDGER_TESTS_FAKE_CUDA_H_
#define GPULEDGER_TESTS_FAKE_CUDA_H_

#ifdef __cplusplus
extern "C" {
#endif

/* hold != 0: events recorded from now on stay unfinished. 0: finishes all of them, and holds no more. */
void fakeCudaHoldEvents(int hold);

/* Finishes the `count` oldest held events, and what is before them in their streams. */
void fakeCudaReleaseEvents(unsigned long long count);

/* How often a function was called since cuInit, by the name without suffix: "cuMemAlloc". */
unsigned long long fakeCudaCallCount(const char* function);

/* Adds faults, as FAKE_CUDA_FAULTS has them, but counted from now. 0: the text is no fault, and stderr says why. */
int fakeCudaInjectFaults(const char* faults);
void fakeCudaClearFaults(void);

#ifdef __cplusplus
}
#endif

#endif /* GPULEDGER_TESTS_FAKE_CUDA_H_ */
