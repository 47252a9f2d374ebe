from .export import export_bundle as export_bundle
from .fit import EpochReport as EpochReport
from .fit import fit as fit
from .plan import check_plan as check_plan
from .plan import training_precision as training_precision
from .ray import fit_distributed as fit_distributed
