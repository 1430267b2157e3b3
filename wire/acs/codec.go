package acs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// newMessage is the closed table of message types: an empty message for its name.
func newMessage(name string) Message {
	switch name {
	case "PayloadMessage":
		return new(PayloadMessage)
	case "HeartbeatMessage":
		return new(HeartbeatMessage)
	case "HeartbeatAckRequest":
		return new(HeartbeatAckRequest)
	case "AckRequest":
		return new(AckRequest)
	case "NackRequest":
		return new(NackRequest)
	case "IAMRoleCredentialsMessage":
		return new(IAMRoleCredentialsMessage)
	case "IAMRoleCredentialsAckRequest":
		return new(IAMRoleCredentialsAckRequest)
	case "TaskManifestMessage":
		return new(TaskManifestMessage)
	case "TaskStopVerificationMessage":
		return new(TaskStopVerificationMessage)
	case "TaskStopVerificationAck":
		return new(TaskStopVerificationAck)
	case "AttachTaskNetworkInterfacesMessage":
		return new(AttachTaskNetworkInterfacesMessage)
	case "AttachInstanceNetworkInterfacesMessage":
		return new(AttachInstanceNetworkInterfacesMessage)
	case "TaskNetworkPolicyMessage":
		return new(TaskNetworkPolicyMessage)
	case "VolumePoolMessage":
		return new(VolumePoolMessage)
	case "VolumePoolResult":
		return new(VolumePoolResult)
	case "ConfirmAttachmentMessage":
		return new(ConfirmAttachmentMessage)
	case "StageUpdateMessage":
		return new(StageUpdateMessage)
	case "PerformUpdateMessage":
		return new(PerformUpdateMessage)
	case "CloseMessage":
		return new(CloseMessage)
	case "ErrorMessage":
		return new(ErrorMessage)
	default:
		return newException(name, "")
	}
}

// newException returns the exception with that name, or nil.
func newException(name, words string) Message {
	switch name {
	case "ServerException":
		return &ServerException{Message: words}
	case "BadRequestException":
		return &BadRequestException{Message: words}
	case "InvalidClusterException":
		return &InvalidClusterException{Message: words}
	case "InvalidInstanceException":
		return &InvalidInstanceException{Message: words}
	case "AccessDeniedException":
		return &AccessDeniedException{Message: words}
	case "InactiveInstanceException":
		return &InactiveInstanceException{Message: words}
	default:
		return nil
	}
}

// UnknownTypeError is a well-formed frame of a type that is not in the protocol.
type UnknownTypeError struct{ Type string }

// Error names the type, cut to what an error text may hold.
func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("acs: unknown message type %q", cut(e.Type, 30))
}

// Decode reads one frame. A frame without a type may be an exception in its short
// form {"<name>": "<message>"}. The error is an *UnknownTypeError or a *FrameError.
func Decode(frame []byte) (Message, error) {
	if err := scan(frame); err != nil {
		return nil, err
	}
	var env Envelope
	if err := unmarshal(frame, &env); err != nil {
		return nil, err
	}
	if env.Type == "" {
		return decodeShort(frame)
	}
	m := newMessage(env.Type)
	if m == nil {
		return nil, &UnknownTypeError{Type: env.Type}
	}
	if len(env.Message) == 0 || string(env.Message) == "null" {
		return nil, &FrameError{Field: "message", Fault: "missing"}
	}
	if err := unmarshal(env.Message, m); err != nil {
		return nil, err
	}
	return m, nil
}

// decodeShort reads an exception in its short form.
func decodeShort(frame []byte) (Message, error) {
	var members map[string]json.RawMessage
	if err := unmarshal(frame, &members); err != nil {
		return nil, err
	}
	if len(members) == 1 {
		for name, raw := range members {
			var words string
			if m := newException(name, ""); m != nil && json.Unmarshal(raw, &words) == nil {
				return newException(name, words), nil
			}
		}
	}
	return nil, &FrameError{Field: "type", Fault: "missing"}
}

// Encode writes one frame. Absent members are left out.
func Encode(m Message) ([]byte, error) {
	if m == nil {
		return nil, errors.New("acs: no message to encode")
	}
	frame, err := json.Marshal(struct {
		Type    string  `json:"type"`
		Message Message `json:"message"`
	}{m.TypeName(), m})
	if err != nil {
		return nil, fmt.Errorf("acs: encode %s: %w", m.TypeName(), err)
	}
	if len(frame) > MaxFrame {
		return nil, fmt.Errorf("acs: encode %s: frame of %d bytes is larger than %d", m.TypeName(), len(frame), MaxFrame)
	}
	return frame, nil
}

// DecodeText reads a JSON document that a message carries as a string (the overrides
// of a container and its Docker-shaped configuration) into v, under the same limits
// as a frame. Members that v does not know are ignored.
func DecodeText(text string, v any) error {
	data := []byte(text)
	if err := scan(data); err != nil {
		return err
	}
	return unmarshal(data, v)
}

// unmarshal is json.Unmarshal with errors that hold nothing of the input but a
// single character.
func unmarshal(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &FrameError{Offset: int(syntax.Offset), Fault: syntax.Error()}
	}
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		got, _, _ := strings.Cut(kind.Value, " ")
		return &FrameError{
			Offset: int(kind.Offset),
			Field:  kind.Field,
			Fault:  fmt.Sprintf("%s where %s is expected", got, kind.Type),
		}
	}
	return &FrameError{Fault: "cannot be decoded"}
}

// cut shortens s to at most n bytes without splitting a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
