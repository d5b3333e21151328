"""The paper's tables and figures made again on real data, its values beside ours."""

from epsball.experiments.paper.classifiers import METHODS, PAPER
from epsball.experiments.paper.everything import everything
from epsball.experiments.paper.figure1 import figure1
from epsball.experiments.paper.figure2 import figure2
from epsball.experiments.paper.figure3 import figure3
from epsball.experiments.paper.figure4 import figure4
from epsball.experiments.paper.setting import Setting
from epsball.experiments.paper.table3 import table3
from epsball.experiments.paper.tables import table1, table2

__all__ = ["METHODS", "PAPER", "Setting", "everything", "figure1", "figure2", "figure3", "figure4", "table1", "table2"]
__all__ += ["table3"]
