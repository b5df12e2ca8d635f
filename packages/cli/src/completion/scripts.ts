/** What a shell loads. All of them ask `wadah __complete`, so names of VMs and images come from the daemon. */
export const SCRIPTS: Record<string, string> = {
  bash: `# wadah completion for bash: source <(wadah completion bash)
_wadah() {
  local IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(wadah __complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "\${COMP_WORDS[COMP_CWORD]}"))
  [[ \${#COMPREPLY[@]} -eq 0 ]] && compopt -o default
}
complete -F _wadah wadah`,
  zsh: `#compdef wadah
# wadah completion for zsh: wadah completion zsh > "\${fpath[1]}/_wadah"
_wadah() {
  local -a found
  found=("\${(@f)$(wadah __complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "\${found[1]}" ]]; then compadd -a found; else _files; fi
}
if [[ "\${funcstack[1]}" == _wadah ]]; then _wadah "$@"; else compdef _wadah wadah; fi`,
  fish: `# wadah completion for fish: wadah completion fish > ~/.config/fish/completions/wadah.fish
function __wadah_complete
  set -l words (commandline -opc) (commandline -ct)
  wadah __complete -- $words[2..-1] 2>/dev/null
end
complete -c wadah -a '(__wadah_complete)'`,
}
