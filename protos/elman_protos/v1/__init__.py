"""The generated messages and stubs of `protos/elman/v1`, gathered under one name.

    from elman_protos import v1
    stub = v1.InferenceServiceStub(grpc.aio.insecure_channel("127.0.0.1:50051"))
"""

from elman_protos.v1.analysis_service_pb2 import *
from elman_protos.v1.analysis_service_pb2_grpc import *
from elman_protos.v1.inference_service_pb2 import *
from elman_protos.v1.inference_service_pb2_grpc import *
from elman_protos.v1.model_pb2 import *
from elman_protos.v1.session_service_pb2 import *
from elman_protos.v1.session_service_pb2_grpc import *
from elman_protos.v1.tensor_pb2 import *
