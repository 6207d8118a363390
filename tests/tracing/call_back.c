/* Built twice, with frames of two sizes: what lies between a caller and what it is called back for. */
__attribute__((visibility("default"))) void CallBack(void (*function)(void*), void* argument) {
  volatile char room[FRAME_BYTES];
  room[0] = 1;
  function(argument);
  room[0] = 2;
}
