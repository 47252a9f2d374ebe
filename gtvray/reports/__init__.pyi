from .overlay import render_overlay as render_overlay
from .recording import record_report as record_report
from .study import Study as Study
from .trials import record_trials_page as record_trials_page
