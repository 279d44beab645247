/* Loaded into Triton 2.51 (LD_PRELOAD): keeps `classification` of strings from ending it.

   A caller may ask for an output as classes. Triton then divides the output's bytes by the size of
   an element, which is 0 for strings (BYTES), before it looks whether it can classify that type;
   it cannot. Given a size of 1 it comes to that and says so to the caller.

   Everybody else must still get 0: Triton tells strings by it elsewhere. So the code that a call
   returns to is compared with the division, which only the classification of this release has. In
   any other Triton nothing is the same, and nothing changes. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_BYTES = 13 }; /* TRITONSERVER_TYPE_BYTES */

static const unsigned char division[] = {
    0x31, 0xd2,       /* xor %edx,%edx */
    0x89, 0xc1,       /* mov %eax,%ecx: the size */
    0x4c, 0x89, 0xe8, /* mov %r13,%rax: bytes of the output */
    0x48, 0xf7, 0xf1, /* div %rcx */
};

static uint32_t (*byte_size)(uint32_t type);

uint32_t TRITONSERVER_DataTypeByteSize(uint32_t type) {
  if (type == TYPE_BYTES && memcmp(__builtin_return_address(0), division, sizeof division) == 0)
    return 1;
  return byte_size(type);
}

/* Processes of Python models get the variable as it was before. */
__attribute__((constructor)) static void start(void) {
  byte_size = (uint32_t(*)(uint32_t))dlsym(RTLD_NEXT, "TRITONSERVER_DataTypeByteSize");
  const char *loaded = getenv("LD_PRELOAD");
  const char *others = loaded ? strchr(loaded, ':') : NULL;
  if (others)
    setenv("LD_PRELOAD", others + 1, 1);
  else
    unsetenv("LD_PRELOAD");
}
