"""`python -m epsball` is the command `epsball`."""

from epsball.cli import main

main()
