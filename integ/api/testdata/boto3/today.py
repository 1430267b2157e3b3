"""What Debian's boto3 does not know: client tokens and the deletion of task definitions."""
import os

import boto3
from botocore.exceptions import ClientError

ecs = boto3.client("ecs", endpoint_url=os.environ["BERTH_URL"])


def error(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response
    raise AssertionError("no error")


for _ in range(2):
    ecs.register_task_definition(family="py", containerDefinitions=[{"name": "c", "image": "i", "memory": 64}])
ecs.deregister_task_definition(taskDefinition="py:2")
answer = ecs.delete_task_definitions(taskDefinitions=["py:2", "py:1", "nope:1"])
assert [d["status"] for d in answer["taskDefinitions"]] == ["DELETE_IN_PROGRESS"], answer
assert len(answer["failures"]) == 2, answer

token = dict(taskDefinition="py:1", clientToken="once")
first = [t["taskArn"] for t in ecs.run_task(**token)["tasks"]]
assert [t["taskArn"] for t in ecs.run_task(**token)["tasks"]] == first
conflict = error(ecs.run_task, count=2, **token)
assert conflict["Error"]["Code"] == "ConflictException", conflict
assert conflict["resourceIds"] == first, conflict
assert error(ecs.run_task, taskDefinition="py:1", clientToken="x" * 65)["Error"]["Code"] == "InvalidParameterException"
assert error(ecs.list_daemons)["Error"]["Code"] == "UnknownOperationException"
