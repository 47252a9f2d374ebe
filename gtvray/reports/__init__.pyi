from .overlay import render_overlay as render_overlay
from .recording import record_report as record_report
from .study import Study as Study
from .study import check_study as check_study
from .trials import record_trials_page as record_trials_page
