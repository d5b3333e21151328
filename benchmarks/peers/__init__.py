"""epsball beside the other libraries: same networks, same samples, passes counted from outside, results judged anew.

python -m benchmarks.peers PART, from the root of the repository, in the environment that `make bench-peers` builds.
"""
