"""Debian's boto3 as a client of the stand-in services; ends with 0 if it sees what it expects."""
import os

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

URL = os.environ["BERTH_URL"]
SECRET_ARN = os.environ["BERTH_SECRET_ARN"]


def client(service, region="us-east-1", **more):
    return boto3.client(service, region_name=region, endpoint_url=URL, config=Config(retries={"max_attempts": 0}), **more)


def refused(code, call, **args):
    try:
        call(**args)
    except ClientError as e:
        got = e.response["Error"]["Code"]
        assert got == code, (got, code, e)
        return
    raise AssertionError("not refused: " + code)


ssm = client("ssm")
out = ssm.get_parameters(Names=["/app/db", "nowhere"], WithDecryption=True)
assert [p["Value"] for p in out["Parameters"]] == ["pw"], out
assert out["InvalidParameters"] == ["nowhere"], out
refused("ValidationException", ssm.get_parameters, Names=["p%d" % i for i in range(11)])
assert client("ssm", "eu-west-1").get_parameters(Names=["/app/db"])["InvalidParameters"] == ["/app/db"]

sm = client("secretsmanager")
assert sm.get_secret_value(SecretId=SECRET_ARN)["SecretString"] == "new"
assert sm.get_secret_value(SecretId="app", VersionStage="AWSPREVIOUS")["SecretString"] == "old"
refused("ResourceNotFoundException", sm.get_secret_value, SecretId="none")
refused("ResourceNotFoundException", sm.get_secret_value, SecretId="app", VersionStage="NONE")

s3 = client("s3")
assert s3.get_bucket_location(Bucket="conf")["LocationConstraint"] == "eu-west-1"
eu = client("s3", "eu-west-1")
assert eu.get_object(Bucket="conf", Key="a/b c+d.env")["Body"].read() == b"A=1\n"
refused("NoSuchKey", eu.get_object, Bucket="conf", Key="none")
refused("NoSuchBucket", eu.get_object, Bucket="none", Key="none")

ecr = client("ecr")
data = ecr.get_authorization_token()["authorizationData"][0]
assert data["authorizationToken"] == "QVdTOnRvaw==", data
assert data["expiresAt"].timestamp() == 2000000000, data

wrong = dict(aws_access_key_id="AKIANOBODY", aws_secret_access_key="x")
refused("UnrecognizedClientException", client("ssm", **wrong).get_parameters, Names=["a"])
refused("InvalidAccessKeyId", client("s3", **wrong).get_object, Bucket="conf", Key="a")
forged = dict(aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"], aws_secret_access_key="x", aws_session_token="session")
refused("InvalidSignatureException", client("ssm", **forged).get_parameters, Names=["a"])
refused("SignatureDoesNotMatch", client("s3", **forged).get_object, Bucket="conf", Key="a")
denied = dict(aws_access_key_id="AKIADENIED", aws_secret_access_key="d")
refused("AccessDeniedException", client("ssm", **denied).get_parameters, Names=["a"])
refused("AccessDenied", client("s3", **denied).get_object, Bucket="conf", Key="a")
