package api

import (
	"context"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"berth.dev/berth/cluster/store"
)

// setting is what the cluster knows of one account setting.
type setting struct {
	name   types.SettingName
	usual  string
	values []string
	// longARN settings cannot be disabled any more.
	longARN bool
	// readOnly settings are AWS's to set.
	readOnly bool
}

var onOff = []string{"enabled", "disabled"}

// settings are all account settings in the order they are listed (ECS API,
// "Account settings").
var settings = []setting{
	{name: types.SettingNameAwsvpcTrunking, usual: "disabled", values: onOff},
	{name: types.SettingNameContainerInsights, usual: "disabled", values: []string{"enabled", "enhanced", "disabled"}},
	{name: types.SettingNameContainerInstanceLongArnFormat, usual: "enabled", values: onOff, longARN: true},
	{name: types.SettingNameDefaultLogDriverMode, usual: "non-blocking", values: []string{"blocking", "non-blocking"}},
	{name: types.SettingNameFargateEventWindows, usual: "disabled", values: onOff},
	{name: types.SettingNameFargateFipsMode, usual: "disabled", values: onOff},
	{name: types.SettingNameFargateTaskRetirementWaitPeriod, usual: "7", values: []string{"0", "7", "14"}},
	{name: types.SettingNameGuardDutyActivate, usual: "off", readOnly: true},
	{name: types.SettingNameServiceLongArnFormat, usual: "enabled", values: onOff, longARN: true},
	{name: types.SettingNameTagResourceAuthorization, usual: "on", values: []string{"on", "off"}},
	{name: types.SettingNameTaskLongArnFormat, usual: "enabled", values: onOff, longARN: true},
}

// everyone is the principal that a default is stored for.
const everyone = "root"

func findSetting(name types.SettingName) (setting, error) {
	i := slices.IndexFunc(settings, func(s setting) bool { return s.name == name })
	if i < 0 {
		return setting{}, invalidParameter("Invalid setting name: %s", clip(string(name)))
	}
	return settings[i], nil
}

func (a *API) checkSetting(name types.SettingName, value string) error {
	s, err := findSetting(name)
	if err != nil {
		return err
	}
	switch {
	case s.readOnly:
		return invalidParameter("The setting %s cannot be changed.", name)
	case s.longARN && value == "disabled":
		return invalidParameter("You can no longer disable the long ARN format for %s in the %s region.", name, a.Region)
	case !slices.Contains(s.values, value):
		return invalidParameter("Invalid value %q of setting %s. Valid values are %s.", clip(value), name, strings.Join(s.values, ", "))
	}
	return nil
}

// principal is whose setting a request means: the caller's if it names none.
func (a *API) principal(ctx context.Context, arn *string) (string, error) {
	p := aws.ToString(arn)
	if p == "" {
		return CallerOf(ctx).ARN, nil
	}
	// The key's parts are joined with slashes, which only the last may hold.
	if !strings.HasPrefix(p, "arn:"+Partition(a.Region)+":iam::"+a.Account+":") || len(p) > 2048 {
		return "", invalidParameter("The principalArn %s is not one of account %s.", clip(p), a.Account)
	}
	if strings.HasSuffix(p, ":root") {
		return everyone, nil
	}
	return p, nil
}

func (a *API) shownSetting(name types.SettingName, value, principal string) types.Setting {
	if principal == everyone {
		principal = "arn:" + Partition(a.Region) + ":iam::" + a.Account + ":root"
	}
	kind := types.SettingTypeUser
	if name == types.SettingNameGuardDutyActivate {
		kind = types.SettingTypeAwsManaged
	}
	return types.Setting{Name: name, Value: &value, PrincipalArn: &principal, Type: kind}
}

func (a *API) putSetting(ctx context.Context, name types.SettingName, value, principal string) (*types.Setting, error) {
	if err := a.checkSetting(name, value); err != nil {
		return nil, err
	}
	err := a.Store.Update(ctx, func(tx *store.Tx) error {
		store.Put(tx, store.Settings, store.Key(string(name), principal), &store.Setting{Name: string(name), Value: value, Principal: principal})
		return nil
	})
	if err != nil {
		return nil, err
	}
	s := a.shownSetting(name, value, principal)
	return &s, nil
}

// PutAccountSetting sets a setting for the caller or another principal.
func (a *API) PutAccountSetting(ctx context.Context, in *ecs.PutAccountSettingInput) (*ecs.PutAccountSettingOutput, error) {
	p, err := a.principal(ctx, in.PrincipalArn)
	if err != nil {
		return nil, err
	}
	s, err := a.putSetting(ctx, in.Name, aws.ToString(in.Value), p)
	if err != nil {
		return nil, err
	}
	return &ecs.PutAccountSettingOutput{Setting: s}, nil
}

// PutAccountSettingDefault sets a setting for all who have not set it.
func (a *API) PutAccountSettingDefault(ctx context.Context, in *ecs.PutAccountSettingDefaultInput) (*ecs.PutAccountSettingDefaultOutput, error) {
	s, err := a.putSetting(ctx, in.Name, aws.ToString(in.Value), everyone)
	if err != nil {
		return nil, err
	}
	return &ecs.PutAccountSettingDefaultOutput{Setting: s}, nil
}

// DeleteAccountSetting goes back to the default.
func (a *API) DeleteAccountSetting(ctx context.Context, in *ecs.DeleteAccountSettingInput) (*ecs.DeleteAccountSettingOutput, error) {
	s, err := findSetting(in.Name)
	if err != nil {
		return nil, err
	}
	if s.readOnly {
		return nil, invalidParameter("The setting %s cannot be changed.", in.Name)
	}
	p, err := a.principal(ctx, in.PrincipalArn)
	if err != nil {
		return nil, err
	}
	var out types.Setting
	err = a.Store.Update(ctx, func(tx *store.Tx) error {
		store.Delete(tx, store.Settings, store.Key(string(in.Name), p))
		out = a.shownSetting(in.Name, effective(tx, s, p), p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &ecs.DeleteAccountSettingOutput{Setting: &out}, nil
}

// effective is the value that holds for a principal.
func effective(r store.Reader, s setting, principal string) string {
	for _, p := range []string{principal, everyone} {
		if v, ok := store.Get(r, store.Settings, store.Key(string(s.name), p)); ok {
			return v.Value
		}
	}
	return s.usual
}

// logMode is how the output of the caller's containers is delivered whose log
// configuration names no mode (ECS API, "defaultLogDriverMode").
func (a *API) logMode(ctx context.Context) (mode string) {
	s, err := findSetting(types.SettingNameDefaultLogDriverMode)
	if err != nil {
		return ""
	}
	a.Store.View(func(r store.Reader) { mode = effective(r, s, CallerOf(ctx).ARN) })
	return mode
}

// ListAccountSettings lists the settings of a principal: those it has set,
// or with effectiveSettings the value of every one.
func (a *API) ListAccountSettings(ctx context.Context, in *ecs.ListAccountSettingsInput) (*ecs.ListAccountSettingsOutput, error) {
	if in.Value != nil && in.Name == "" {
		return nil, invalidParameter("name must be given with value.")
	}
	p, err := a.principal(ctx, in.PrincipalArn)
	if err != nil {
		return nil, err
	}
	var size *int32
	if in.MaxResults != 0 {
		size = &in.MaxResults
	}
	pg, err := newPage(in.NextToken, size, 10, 10, "ListAccountSettings", in.Name, in.Value, p, in.EffectiveSettings)
	if err != nil {
		return nil, err
	}
	out := new(ecs.ListAccountSettingsOutput)
	a.Store.View(func(r store.Reader) {
		for _, s := range settings {
			if string(s.name) <= pg.after || in.Name != "" && s.name != in.Name {
				continue
			}
			var value string
			if in.EffectiveSettings {
				value = effective(r, s, p)
			} else {
				v, ok := store.Get(r, store.Settings, store.Key(string(s.name), p))
				if !ok {
					continue
				}
				value = v.Value
			}
			if in.Value != nil && value != *in.Value {
				continue
			}
			if !pg.take(string(s.name)) {
				return
			}
			out.Settings = append(out.Settings, a.shownSetting(s.name, value, p))
		}
	})
	out.NextToken = pg.next()
	return out, nil
}
