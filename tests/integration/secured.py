"""A Kafka with an authoriser, users and certificates, for the tests of what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from scorer import kafka
from scorer.kafka.rights import Acl, Role, missing
from scorer.runtime.settings import Settings, load
from tests.faults.broker import OwnBroker
from tests.integration.certificates import Authority

USERS = ("worker", "sink", "reader", "redrive", "payments", "labels", "operator", "setup", "stranger")
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}
_OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


def sasl(user: str) -> dict[str, str]:
    return {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": user}


class Secured:
    """A broker with users, certificates and no grants but the ones that a test makes."""

    def __init__(self, folder: Path, properties: Mapping[str, str] | None = None) -> None:
        self.authority = Authority(folder)
        self.authority.issue("broker")
        users = " ".join(f'user_{name}="{name}-secret"' for name in ("admin", *USERS))
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        bearer = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
        self.broker = OwnBroker(
            {
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:admin;User:ANONYMOUS",  # anonymous: the controller's own listener
                "sasl.enabled.mechanisms": "PLAIN,OAUTHBEARER",
                "sasl.mechanism.inter.broker.protocol": "PLAIN",
                "listener.name.direct.plain.sasl.jaas.config": (
                    f'{plain} username="admin" password="admin-secret" {users};'
                ),
                "listener.name.direct.oauthbearer.sasl.jaas.config": f'{bearer} unsecuredLoginStringClaim_sub="admin";',
                "listener.name.proxied.ssl.client.auth": "required",
                "listener.name.proxied.ssl.keystore.type": "PEM",
                "listener.name.proxied.ssl.keystore.location": str(folder / "broker.pem"),
                "listener.name.proxied.ssl.truststore.type": "PEM",
                "listener.name.proxied.ssl.truststore.location": str(self.authority.certificate),
                **(properties or {}),
            },
            listener="SASL_PLAINTEXT",
            proxied_listener="SSL",
        )

    @cached_property
    def admin(self) -> AdminClient:
        """A client of the broker that runs: until then its ports may change."""
        return kafka.admin(self.settings("admin", "").kafka)

    def settings(self, user: str, prefix: str, **sections: Any) -> Settings:
        return load(
            kafka={
                "bootstrap_servers": self.broker.bootstrap_servers,
                "topic_prefix": prefix,
                "security": sasl(user),
                "sasl_password": f"{user}-secret",
            },
            **sections,
        )

    def grant(self, principal: str, grants: list[Acl]) -> None:
        bindings = [
            AclBinding(
                _RESOURCES[acl.resource],
                acl.name,
                ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL,
                principal,
                "*",
                _OPERATIONS[operation],
                AclPermissionType.ALLOW,
            )
            for acl in grants
            for operation in acl.operations
        ]
        for future in self.admin.create_acls(bindings).values() if bindings else ():
            future.result(15)

    def revoke(self, principal: str) -> None:
        every = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, principal, None, AclOperation.ANY, AclPermissionType.ANY
        )
        for future in self.admin.delete_acls([every]).values():
            future.result(15)


def seen_missing(settings: Settings, role: Role) -> list[Acl] | None:
    """What the role lacks; None while the broker does not answer, as a busy one: to be asked again."""
    try:
        return missing(settings, role)
    except kafka.KafkaFailure:
        return None
