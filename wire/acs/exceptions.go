package acs

// The exceptions of the protocol are messages and errors. A cluster sends one as a
// frame, or as the body of an answer that refuses the websocket, there also in the
// short form {"<name>": "<message>"}.

// ServerException is a fault of the cluster.
type ServerException struct {
	Message string `json:"message,omitempty"`
}

// BadRequestException is a fault of what the agent sent.
type BadRequestException struct {
	Message string `json:"message,omitempty"`
}

// InvalidClusterException says that there is no such cluster.
type InvalidClusterException struct {
	Message string `json:"message,omitempty"`
}

// InvalidInstanceException says that there is no such container instance.
type InvalidInstanceException struct {
	Message string `json:"message,omitempty"`
}

// AccessDeniedException says that the caller's key may not open the session.
type AccessDeniedException struct {
	Message string `json:"message,omitempty"`
}

// InactiveInstanceException says that the container instance was deregistered.
type InactiveInstanceException struct {
	Message string `json:"message,omitempty"`
}

// TypeName is the name in the frame.
func (*ServerException) TypeName() string { return "ServerException" }

// TypeName is the name in the frame.
func (*BadRequestException) TypeName() string { return "BadRequestException" }

// TypeName is the name in the frame.
func (*InvalidClusterException) TypeName() string { return "InvalidClusterException" }

// TypeName is the name in the frame.
func (*InvalidInstanceException) TypeName() string { return "InvalidInstanceException" }

// TypeName is the name in the frame.
func (*AccessDeniedException) TypeName() string { return "AccessDeniedException" }

// TypeName is the name in the frame.
func (*InactiveInstanceException) TypeName() string { return "InactiveInstanceException" }

// Error is "<name>: <message>".
func (e *ServerException) Error() string { return exceptionText(e, e.Message) }

// Error is "<name>: <message>".
func (e *BadRequestException) Error() string { return exceptionText(e, e.Message) }

// Error is "<name>: <message>".
func (e *InvalidClusterException) Error() string { return exceptionText(e, e.Message) }

// Error is "<name>: <message>".
func (e *InvalidInstanceException) Error() string { return exceptionText(e, e.Message) }

// Error is "<name>: <message>".
func (e *AccessDeniedException) Error() string { return exceptionText(e, e.Message) }

// Error is "<name>: <message>".
func (e *InactiveInstanceException) Error() string { return exceptionText(e, e.Message) }

// exceptionText cuts the words of the peer to what fits a log line.
func exceptionText(m Message, words string) string {
	const most = 256
	if len(words) > most {
		words = cut(words, most) + "..."
	}
	return m.TypeName() + ": " + words
}
