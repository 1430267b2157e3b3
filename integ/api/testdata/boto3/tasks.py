"""Tasks and container instances, with boto3's own waiters and paginators."""
import os
from concurrent.futures import ThreadPoolExecutor

import boto3
from botocore.exceptions import ClientError

ecs = boto3.client("ecs", endpoint_url=os.environ["BERTH_URL"])
instance = os.environ["BERTH_INSTANCE"]


def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        return e.response["Error"]["Code"]
    return None


def pages(name, key, **arguments):
    size = {"PageSize": 3}
    return [x for page in ecs.get_paginator(name).paginate(PaginationConfig=size, **arguments) for x in page[key]]


quick = {"Delay": 1, "MaxAttempts": 30}
ecs.register_task_definition(family="py", containerDefinitions=[{"name": "c", "image": "i", "memory": 64, "cpu": 16}])
run = ecs.run_task(taskDefinition="py", count=5, startedBy="boto3", group="g", enableECSManagedTags=True)
assert len(run["tasks"]) == 5 and run["failures"] == [], run
arns = [t["taskArn"] for t in run["tasks"]]
ecs.get_waiter("tasks_running").wait(tasks=arns, WaiterConfig=quick)
assert sorted(pages("list_tasks", "taskArns", startedBy="boto3")) == sorted(arns)
assert pages("list_tasks", "taskArns", family="other") == []
task = ecs.describe_tasks(tasks=arns[:1], include=["TAGS"])["tasks"][0]
assert task["lastStatus"] == "RUNNING" and task["startedAt"].tzinfo, task
assert {"key": "aws:ecs:clusterName", "value": "default"} in task["tags"], task
for arn in arns:
    ecs.stop_task(task=arn, reason="over")
ecs.get_waiter("tasks_stopped").wait(tasks=arns, WaiterConfig=quick)
task = ecs.describe_tasks(tasks=arns[:1])["tasks"][0]
assert task["containers"][0]["exitCode"] == 3 and task["stopCode"] == "UserInitiated" and task["stoppedReason"] == "over", task

first = ecs.run_task(taskDefinition="py")["tasks"][0]["taskArn"]
started = ecs.start_task(taskDefinition="py", containerInstances=[instance, "f" * 32])
assert len(started["tasks"]) == 1 and started["failures"][0]["reason"] == "MISSING", started
assert code(ecs.run_task, taskDefinition="py", count=11) == "InvalidParameterException"
assert code(ecs.run_task, taskDefinition="nope") == "ClientException"
assert code(ecs.describe_tasks, cluster="nope", tasks=["x"]) == "ClusterNotFoundException"
misplaced = ecs.run_task(taskDefinition="py", placementConstraints=[{"type": "memberOf", "expression": "attribute:stack == dev"}])
assert misplaced["tasks"] == [] and misplaced["failures"][0]["arn"] == instance, misplaced

with ThreadPoolExecutor(20) as pool:
    answers = list(pool.map(lambda _: ecs.run_task(taskDefinition="py", count=2), range(40)))
assert sum(len(a["tasks"]) for a in answers) + sum(len(a["failures"]) for a in answers) == 80

assert pages("list_container_instances", "containerInstanceArns", filter="attribute:stack == prod") == [instance]
d = ecs.describe_container_instances(containerInstances=[instance])["containerInstances"][0]
assert d["agentConnected"] and d["status"] == "ACTIVE", d
ecs.put_attributes(attributes=[{"name": "color", "value": "red", "targetId": instance}])
assert [a["value"] for a in pages("list_attributes", "attributes", targetType="container-instance", attributeName="color")] == ["red"]
ecs.delete_attributes(attributes=[{"name": "color", "targetId": instance}])
drained = ecs.update_container_instances_state(containerInstances=[instance], status="DRAINING")["containerInstances"][0]
assert drained["status"] == "DRAINING", drained

agent = boto3.client(
    "ecs",
    endpoint_url=os.environ["BERTH_URL"],
    aws_access_key_id=os.environ["BERTH_INSTANCE_KEY"],
    aws_secret_access_key=os.environ["BERTH_INSTANCE_SECRET"],
)
assert agent.discover_poll_endpoint(containerInstance=instance)["endpoint"]
assert code(agent.list_tasks) == "AccessDeniedException"
assert "acknowledgment" in agent.submit_task_state_change(task=first, status="STOPPED", reason="from boto3")
assert ecs.describe_tasks(tasks=[first])["tasks"][0]["lastStatus"] == "STOPPED"

sts = boto3.client("sts", endpoint_url=os.environ["BERTH_URL"])
assert sts.get_caller_identity()["Account"] == "123456789012"
for key, secret, want in (
    ("AKIAXXXXXXXXXXXXXXXX", "x", "UnrecognizedClientException"),
    (os.environ["AWS_ACCESS_KEY_ID"], "x", "InvalidSignatureException"),
):
    bad = boto3.client("ecs", endpoint_url=os.environ["BERTH_URL"], aws_access_key_id=key, aws_secret_access_key=secret)
    assert code(bad.list_clusters) == want
assert ecs.deregister_container_instance(containerInstance=instance, force=True)["containerInstance"]["status"] == "INACTIVE"
