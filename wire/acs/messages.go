package acs

import (
	"context"
	"encoding/json"
)

// Message is one message of the protocol, in either direction.
type Message interface {
	// TypeName is the value of "type" in the frame.
	TypeName() string
}

// Envelope is a frame. Message is kept as it was received.
type Envelope struct {
	Type    string          `json:"type"`
	Message json.RawMessage `json:"message"`
}

// PayloadMessage gives the agent tasks to run or to stop. MessageID, ClusterARN and
// ContainerInstanceARN must be there, or the message has no effect and no answer.
type PayloadMessage struct {
	MessageID            string `json:"messageId,omitempty"`
	ClusterARN           string `json:"clusterArn,omitempty"`
	ContainerInstanceARN string `json:"containerInstanceArn,omitempty"`
	SeqNum               int64  `json:"seqNum,omitempty"`
	GeneratedAt          int64  `json:"generatedAt,omitempty"` // Unix milliseconds
	Timeline             *int64 `json:"timeline,omitempty"`
	Tasks                []Task `json:"tasks,omitempty"`
}

// HeartbeatMessage keeps a quiet session alive.
type HeartbeatMessage struct {
	Healthy   bool   `json:"healthy"`
	MessageID string `json:"messageId,omitempty"`
}

// HeartbeatAckRequest answers a HeartbeatMessage.
type HeartbeatAckRequest struct {
	MessageID string `json:"messageId,omitempty"`
}

// AckRequest says that the agent has taken a message over for good. Cluster and
// ContainerInstance echo the values of the message.
type AckRequest struct {
	Cluster           string `json:"cluster,omitempty"`
	ContainerInstance string `json:"containerInstance,omitempty"`
	MessageID         string `json:"messageId,omitempty"`
}

// NackRequest says that the agent refuses a message.
type NackRequest struct {
	Cluster           string `json:"cluster,omitempty"`
	ContainerInstance string `json:"containerInstance,omitempty"`
	MessageID         string `json:"messageId,omitempty"`
	Reason            string `json:"reason,omitempty"`
}

// Role types of an IAMRoleCredentialsMessage.
const (
	RoleTaskApplication = "TaskApplication"
	RoleTaskExecution   = "TaskExecution"
)

// IAMRoleCredentialsMessage brings new credentials of a task's role.
type IAMRoleCredentialsMessage struct {
	MessageID       string              `json:"messageId,omitempty"`
	TaskARN         string              `json:"taskArn,omitempty"`
	TaskClusterARN  string              `json:"taskClusterArn,omitempty"`
	RoleType        string              `json:"roleType,omitempty"`
	RoleCredentials *IAMRoleCredentials `json:"roleCredentials,omitempty"`
}

// IAMRoleCredentialsAckRequest says that the agent holds a set of credentials.
type IAMRoleCredentialsAckRequest struct {
	MessageID     string `json:"messageId,omitempty"`
	Expiration    string `json:"expiration,omitempty"` // as it was received
	CredentialsID string `json:"credentialsId,omitempty"`
}

// TaskIdentifier names a task and what is wanted of it.
type TaskIdentifier struct {
	TaskARN        string `json:"taskArn,omitempty"`
	TaskClusterARN string `json:"taskClusterArn,omitempty"`
	DesiredStatus  string `json:"desiredStatus,omitempty"`
}

// TaskManifestMessage lists every task that the cluster believes to be on the
// instance. It counts only when Timeline is above every sequence number seen so far.
type TaskManifestMessage struct {
	MessageID            string           `json:"messageId,omitempty"`
	ClusterARN           string           `json:"clusterArn,omitempty"`
	ContainerInstanceARN string           `json:"containerInstanceArn,omitempty"`
	GeneratedAt          int64            `json:"generatedAt,omitempty"` // Unix milliseconds
	Timeline             int64            `json:"timeline,omitempty"`
	Tasks                []TaskIdentifier `json:"tasks,omitempty"`
}

// TaskStopVerificationMessage asks the cluster whether tasks that its manifest does
// not list are to be stopped. MessageID is the manifest's.
type TaskStopVerificationMessage struct {
	MessageID      string           `json:"messageId,omitempty"`
	StopCandidates []TaskIdentifier `json:"stopCandidates,omitempty"`
}

// TaskStopVerificationAck answers it with the tasks that are to be stopped.
type TaskStopVerificationAck struct {
	MessageID   string           `json:"messageId,omitempty"`
	GeneratedAt int64            `json:"generatedAt,omitempty"` // Unix milliseconds
	StopTasks   []TaskIdentifier `json:"stopTasks,omitempty"`
}

// AttachMessage is one of the three messages that announce something that is being
// attached to the instance.
type AttachMessage interface {
	Message
	attach()
}

// AttachTaskNetworkInterfacesMessage announces the network interfaces of a task.
type AttachTaskNetworkInterfacesMessage struct {
	MessageID                string                    `json:"messageId,omitempty"`
	ClusterARN               string                    `json:"clusterArn,omitempty"`
	ContainerInstanceARN     string                    `json:"containerInstanceArn,omitempty"`
	TaskARN                  string                    `json:"taskArn,omitempty"`
	TaskClusterARN           string                    `json:"taskClusterArn,omitempty"`
	GeneratedAt              int64                     `json:"generatedAt,omitempty"`   // Unix milliseconds
	WaitTimeoutMs            int64                     `json:"waitTimeoutMs,omitempty"` // milliseconds
	ElasticNetworkInterfaces []ElasticNetworkInterface `json:"elasticNetworkInterfaces,omitempty"`
}

// TaskNetworkPolicyMessage is Berth's own and says what the security groups of the
// interfaces of tasks on an instance let pass. Each one replaces the one before as a
// whole. It is not acknowledged: it is sent with every session and whenever it changes.
// Other agents ignore it, as they do all types that they do not know.
type TaskNetworkPolicyMessage struct {
	MessageID            string            `json:"messageId,omitempty"`
	ClusterARN           string            `json:"clusterArn,omitempty"`
	ContainerInstanceARN string            `json:"containerInstanceArn,omitempty"`
	Interfaces           []InterfacePolicy `json:"interfaces,omitempty"`
	Groups               []AddressGroup    `json:"groups,omitempty"` // those that rules name
}

// Orders of a VolumePoolMessage.
const (
	PoolDeleteVolume   = "DeleteVolume"
	PoolCreateSnapshot = "CreateSnapshot"
	PoolDeleteSnapshot = "DeleteSnapshot"
)

// VolumePoolMessage is Berth's own and says what is to be done with volumes in the pool of
// an instance that no task waits for. It holds everything that is open, and is not
// acknowledged: it is sent with every session and whenever it changes, until a
// VolumePoolResult has come for each order. To carry out an order again changes nothing.
type VolumePoolMessage struct {
	MessageID            string      `json:"messageId,omitempty"`
	ClusterARN           string      `json:"clusterArn,omitempty"`
	ContainerInstanceARN string      `json:"containerInstanceArn,omitempty"`
	Orders               []PoolOrder `json:"orders,omitempty"`
}

// PoolOrder is one thing to do.
type PoolOrder struct {
	Order      string `json:"order,omitempty"`
	VolumeID   string `json:"volumeId,omitempty"`
	SnapshotID string `json:"snapshotId,omitempty"` // of the orders that are about one
	// TaskID and VolumeName say whose volume CreateSnapshot is about.
	TaskID     string `json:"taskId,omitempty"`
	VolumeName string `json:"volumeName,omitempty"`
}

// VolumePoolResult answers one order.
type VolumePoolResult struct {
	MessageID  string `json:"messageId,omitempty"` // of the last message that held it
	Order      string `json:"order,omitempty"`
	VolumeID   string `json:"volumeId,omitempty"`
	SnapshotID string `json:"snapshotId,omitempty"`
	Fault      string `json:"fault,omitempty"` // why it cannot be done, now or later
}

// InterfacePolicy is what one interface lets pass; all else is dropped but replies.
type InterfacePolicy struct {
	MACAddress string        `json:"macAddress,omitempty"`
	EC2ID      string        `json:"ec2Id,omitempty"`
	Ingress    []TrafficRule `json:"ingress,omitempty"`
	Egress     []TrafficRule `json:"egress,omitempty"`
}

// TrafficRule lets some traffic pass. The other side is CIDR or the members of a group.
type TrafficRule struct {
	Protocol int32  `json:"protocol"`          // number of the IP protocol (IANA); -1 is all
	From     int32  `json:"from"`              // first port, or ICMP type; -1 is all
	To       int32  `json:"to"`                // last port, or ICMP code; -1 is all
	CIDR     string `json:"cidr,omitempty"`    // a.b.c.d/len or x::y/len
	GroupID  string `json:"groupId,omitempty"` // a security group
}

// AddressGroup lists the addresses of the members of a security group, with spaces in
// between: a frame holds more text than array elements.
type AddressGroup struct {
	GroupID   string `json:"groupId,omitempty"`
	Addresses string `json:"addresses,omitempty"`
}

// AttachInstanceNetworkInterfacesMessage announces network interfaces of the instance,
// which are the trunks that the interfaces of tasks branch from.
type AttachInstanceNetworkInterfacesMessage struct {
	MessageID                string                    `json:"messageId,omitempty"`
	ClusterARN               string                    `json:"clusterArn,omitempty"`
	ContainerInstanceARN     string                    `json:"containerInstanceArn,omitempty"`
	GeneratedAt              int64                     `json:"generatedAt,omitempty"`   // Unix milliseconds
	WaitTimeoutMs            int64                     `json:"waitTimeoutMs,omitempty"` // milliseconds
	ElasticNetworkInterfaces []ElasticNetworkInterface `json:"elasticNetworkInterfaces,omitempty"`
}

// ConfirmAttachmentMessage announces a volume.
type ConfirmAttachmentMessage struct {
	MessageID            string      `json:"messageId,omitempty"`
	ClusterARN           string      `json:"clusterArn,omitempty"`
	ContainerInstanceARN string      `json:"containerInstanceArn,omitempty"`
	TaskARN              string      `json:"taskArn,omitempty"`
	TaskClusterARN       string      `json:"taskClusterArn,omitempty"`
	GeneratedAt          int64       `json:"generatedAt,omitempty"` // Unix milliseconds
	WaitTimeoutMs        *int64      `json:"waitTimeoutMs,omitempty"`
	Attachment           *Attachment `json:"attachment,omitempty"`
}

// UpdateInfo says where an update of the agent is and what it must hash to.
type UpdateInfo struct {
	Location  string `json:"location,omitempty"`
	Signature string `json:"signature,omitempty"` // SHA-256 in hexadecimal
	// Former is what the agent is installed from now, to go back to. Only Berth has it.
	Former *UpdateInfo `json:"former,omitempty"`
}

// StageUpdateMessage asks the agent to fetch an update.
type StageUpdateMessage struct {
	MessageID            string      `json:"messageId,omitempty"`
	ClusterARN           string      `json:"clusterArn,omitempty"`
	ContainerInstanceARN string      `json:"containerInstanceArn,omitempty"`
	UpdateInfo           *UpdateInfo `json:"updateInfo,omitempty"`
}

// PerformUpdateMessage asks the agent to change over to the update it fetched.
type PerformUpdateMessage struct {
	MessageID            string      `json:"messageId,omitempty"`
	ClusterARN           string      `json:"clusterArn,omitempty"`
	ContainerInstanceARN string      `json:"containerInstanceArn,omitempty"`
	UpdateInfo           *UpdateInfo `json:"updateInfo,omitempty"`
}

// CloseMessage announces that the cluster ends the session.
type CloseMessage struct {
	Message string `json:"message,omitempty"`
}

// ErrorMessage tells of a fault that has no name of its own.
type ErrorMessage struct {
	Message string `json:"message,omitempty"`
}

// TypeName is the name in the frame.
func (*PayloadMessage) TypeName() string { return "PayloadMessage" }

// TypeName is the name in the frame.
func (*HeartbeatMessage) TypeName() string { return "HeartbeatMessage" }

// TypeName is the name in the frame.
func (*HeartbeatAckRequest) TypeName() string { return "HeartbeatAckRequest" }

// TypeName is the name in the frame.
func (*AckRequest) TypeName() string { return "AckRequest" }

// TypeName is the name in the frame.
func (*NackRequest) TypeName() string { return "NackRequest" }

// TypeName is the name in the frame.
func (*IAMRoleCredentialsMessage) TypeName() string { return "IAMRoleCredentialsMessage" }

// TypeName is the name in the frame.
func (*IAMRoleCredentialsAckRequest) TypeName() string { return "IAMRoleCredentialsAckRequest" }

// TypeName is the name in the frame.
func (*TaskManifestMessage) TypeName() string { return "TaskManifestMessage" }

// TypeName is the name in the frame.
func (*TaskStopVerificationMessage) TypeName() string { return "TaskStopVerificationMessage" }

// TypeName is the name in the frame.
func (*TaskStopVerificationAck) TypeName() string { return "TaskStopVerificationAck" }

// TypeName is the name in the frame.
func (*AttachTaskNetworkInterfacesMessage) TypeName() string {
	return "AttachTaskNetworkInterfacesMessage"
}

// TypeName is the name in the frame.
func (*AttachInstanceNetworkInterfacesMessage) TypeName() string {
	return "AttachInstanceNetworkInterfacesMessage"
}

// TypeName is the name in the frame.
func (*TaskNetworkPolicyMessage) TypeName() string { return "TaskNetworkPolicyMessage" }

// TypeName is "VolumePoolMessage".
func (*VolumePoolMessage) TypeName() string { return "VolumePoolMessage" }

// TypeName is "VolumePoolResult".
func (*VolumePoolResult) TypeName() string { return "VolumePoolResult" }

// TypeName is the name in the frame.
func (*ConfirmAttachmentMessage) TypeName() string { return "ConfirmAttachmentMessage" }

// TypeName is the name in the frame.
func (*StageUpdateMessage) TypeName() string { return "StageUpdateMessage" }

// TypeName is the name in the frame.
func (*PerformUpdateMessage) TypeName() string { return "PerformUpdateMessage" }

// TypeName is the name in the frame.
func (*CloseMessage) TypeName() string { return "CloseMessage" }

// TypeName is the name in the frame.
func (*ErrorMessage) TypeName() string { return "ErrorMessage" }

func (*AttachTaskNetworkInterfacesMessage) attach()     {}
func (*AttachInstanceNetworkInterfacesMessage) attach() {}
func (*ConfirmAttachmentMessage) attach()               {}

// Responder sends messages over the session that a message came from. A nil error
// means that the message was taken for sending and not that it has arrived: the
// protocol acknowledges no acknowledgement, and whoever misses one sends again.
type Responder interface {
	Send(ctx context.Context, m Message) error
}
