/* Stands in for a restored tree: exits with 3 and leaves a child that exits only when it is killed. */
#include <unistd.h>

int main(void)
{
	if (fork() == 0)
		for (;;)
			pause();
	return 3;
}
