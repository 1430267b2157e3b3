"""Clusters, task definitions, tags and settings, with boto3's own paginators."""
import os

import boto3
from botocore.exceptions import ClientError

ecs = boto3.client("ecs", endpoint_url=os.environ["BERTH_URL"])


def code(call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        assert e.response["ResponseMetadata"]["RequestId"], "no request id"
        return e.response["Error"]["Code"]
    return None


def pages(name, key, **arguments):
    size = {"PageSize": 2}
    return [x for page in ecs.get_paginator(name).paginate(PaginationConfig=size, **arguments) for x in page[key]]


for n in range(5):
    created = ecs.create_cluster(clusterName=f"py-{n}", tags=[{"key": "n", "value": str(n)}])["cluster"]
    assert created["status"] == "ACTIVE", created
arns = pages("list_clusters", "clusterArns")
assert len([a for a in arns if "/py-" in a]) == 5, arns
described = ecs.describe_clusters(clusters=["py-1", "nope"], include=["TAGS"])
assert described["clusters"][0]["tags"] == [{"key": "n", "value": "1"}], described
assert described["failures"][0]["reason"] == "MISSING", described
assert ecs.delete_cluster(cluster="py-4")["cluster"]["status"] == "INACTIVE"
assert code(ecs.delete_cluster, cluster="nope") == "ClusterNotFoundException"
assert code(ecs.create_cluster, clusterName="bad name") == "InvalidParameterException"

for n in range(5):
    answer = ecs.register_task_definition(
        family="py",
        containerDefinitions=[{"name": "c", "image": "i", "memory": 64, "environment": [{"name": "A", "value": "ä☃"}]}],
        tags=[{"key": "k", "value": "v"}],
    )
    definition = answer["taskDefinition"]
    assert definition["revision"] == n + 1 and definition["status"] == "ACTIVE", definition
    assert definition["registeredAt"].year > 2000, definition
    assert definition["containerDefinitions"][0]["environment"][0]["value"] == "ä☃"
    assert answer["tags"] == [{"key": "k", "value": "v"}], answer
assert len(pages("list_task_definitions", "taskDefinitionArns", familyPrefix="py")) == 5
assert pages("list_task_definition_families", "families") == ["py"]
assert ecs.describe_task_definition(taskDefinition="py")["taskDefinition"]["revision"] == 5
assert ecs.deregister_task_definition(taskDefinition="py:5")["taskDefinition"]["status"] == "INACTIVE"
assert ecs.describe_task_definition(taskDefinition="py")["taskDefinition"]["revision"] == 4
assert code(ecs.describe_task_definition, taskDefinition="nope") == "ClientException"
assert code(ecs.register_task_definition, family="py", containerDefinitions=[{"name": "c", "image": "i"}]) == "ClientException"

arn = described["clusters"][0]["clusterArn"]
ecs.tag_resource(resourceArn=arn, tags=[{"key": "m", "value": ""}])
ecs.untag_resource(resourceArn=arn, tagKeys=["n"])
assert ecs.list_tags_for_resource(resourceArn=arn)["tags"] == [{"key": "m", "value": ""}]

ecs.put_account_setting(name="containerInsights", value="enabled")
settings = pages("list_account_settings", "settings", effectiveSettings=True)
assert [s["value"] for s in settings if s["name"] == "containerInsights"] == ["enabled"], settings
assert ecs.delete_account_setting(name="containerInsights")["setting"]["name"] == "containerInsights"

# What boto3 itself would refuse reaches the server when its own checks are off.
raw = boto3.client("ecs", endpoint_url=os.environ["BERTH_URL"], config=boto3.session.Config(parameter_validation=False))
assert code(raw.register_task_definition) in ("InvalidParameterException", "ClientException")
assert code(raw.describe_tasks, tasks=[]) == "InvalidParameterException"
