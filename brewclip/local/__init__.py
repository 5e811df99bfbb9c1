"""Local services: an S3 server, a Ray head and MLflow on loopback, which end with the program.

Not for production: set AWS_*, MLFLOW_TRACKING_URI and RAY_ADDRESS to use your own cluster instead.
"""

from brewclip.local.mlflow_login import MlflowLogin
from brewclip.local.mlflow_server import MlflowServer
from brewclip.local.processes import free_port, wait_until_ready
from brewclip.local.ray_head import RayHead
from brewclip.local.ray_jobs import submit_job
from brewclip.local.s3_key import S3Key
from brewclip.local.s3_server import S3Server
from brewclip.local.services import LocalServices, StateError

__all__ = [
    "LocalServices",
    "MlflowLogin",
    "MlflowServer",
    "RayHead",
    "S3Key",
    "S3Server",
    "StateError",
    "free_port",
    "submit_job",
    "wait_until_ready",
]
