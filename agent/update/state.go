package update

import "berth.dev/berth/wire/acs"

// Answers to update messages (agent protocol, StageUpdateMessage, PerformUpdateMessage).
const (
	reasonDisabled      = "Updates are disabled"
	reasonInvalid       = "Invalid update: "
	reasonNewer         = "New update arrived: "
	reasonDownload      = "Unable to download: "
	reasonNotDownloaded = "Cannot perform update; update not downloaded"
	reasonCannot        = "Cannot perform update; "
)

type phase int

const (
	idle phase = iota
	fetching
	staged
	performing
)

// progress is how far an update is. It decides and does nothing itself.
type progress struct {
	phase     phase
	message   string // id of the StageUpdateMessage that is to be answered
	signature string // of the update, SHA-256 in hexadecimal
}

// answer is one answer to the cluster; without a reason it is an acknowledgement.
type answer struct{ message, reason string }

// stage takes a StageUpdateMessage. fetch tells that its update is to be fetched, which
// fetched is told of.
func (p progress) stage(message string, info *acs.UpdateInfo) (next progress, answers []answer, fetch bool) {
	invalid := ""
	switch {
	case info == nil:
		invalid = "no update info given"
	case info.Location == "":
		invalid = "no location given"
	case info.Signature == "":
		invalid = "no signature given"
	}
	if invalid != "" {
		return p, []answer{{message, reasonInvalid + invalid}}, false
	}
	if p.signature == info.Signature {
		switch p.phase {
		case fetching:
			// Who asks again, as after a lost connection, is answered when it is there:
			// an acknowledgement would have the cluster go on to what cannot be done yet.
			p.message = message
			return p, nil, false
		case staged, performing:
			return p, []answer{{message, ""}}, false
		}
	}
	if p.phase == performing {
		return p, []answer{{message, reasonCannot + "another is being installed"}}, false
	}
	if p.phase == fetching {
		answers = []answer{{p.message, reasonNewer + message}}
	}
	return progress{fetching, message, info.Signature}, answers, true
}

// fetched takes the end of a fetch of the update with that signature.
func (p progress) fetched(signature string, err error) (progress, []answer) {
	if p.phase != fetching || p.signature != signature {
		return p, nil // another has taken its place
	}
	if err != nil {
		return progress{}, []answer{{p.message, reasonDownload + err.Error()}}
	}
	return progress{phase: staged, signature: signature}, []answer{{p.message, ""}}
}

// perform takes a PerformUpdateMessage. install tells that the update is to be installed.
func (p progress) perform(message string, info *acs.UpdateInfo) (next progress, answers []answer, install bool) {
	if p.phase < staged || info != nil && info.Signature != "" && info.Signature != p.signature {
		return p, []answer{{message, reasonNotDownloaded}}, false
	}
	if p.phase == performing {
		return p, []answer{{message, ""}}, false
	}
	p.phase = performing
	return p, nil, true
}

// performed takes how the beginning of the installation went.
func (p progress) performed(message string, err error) (progress, []answer) {
	if err != nil {
		p.phase = staged
		return p, []answer{{message, reasonCannot + err.Error()}}
	}
	return p, []answer{{message, ""}}
}
