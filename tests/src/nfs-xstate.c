// Loaded into User Mode Linux, which is older than some processors: it restores the registers of a
// process from a buffer that has no room for all of theirs (AMX has 8 KiB), and the host takes all or
// nothing. Here what the kernel does not know of is put behind what it gives.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*host_ptrace)(enum __ptrace_request, ...);

__attribute__((constructor)) static void find_ptrace(void)
{
    host_ptrace = dlsym(RTLD_NEXT, "ptrace");
}

long ptrace(enum __ptrace_request request, ...)
{
    // Not on the stack: the kernel's are small. It has one processor, and so one caller.
    static char registers[1 << 16];
    va_list arguments;
    va_start(arguments, request);
    pid_t process = va_arg(arguments, pid_t);
    void *address = va_arg(arguments, void *);
    void *data = va_arg(arguments, void *);
    va_end(arguments);

    struct iovec *known = data, whole = {registers, sizeof registers};
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE
        && host_ptrace(PTRACE_GETREGSET, process, address, &whole) == 0
        && known->iov_len < whole.iov_len) {
        memcpy(registers, known->iov_base, known->iov_len);
        data = &whole;
    }
    return host_ptrace(request, process, address, data);
}
