/* libnvidia-ml.so.1: it is asked for the driver's version alone. */
#include <stdio.h>

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }

int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    snprintf(version, size, "580.95.05");
    return 0;
}
