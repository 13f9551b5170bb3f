// Apply the stored theme before the first paint; the select in the header changes it.

{
  const stored = () => localStorage.getItem("theme") ?? "auto";
  const apply = theme => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
  };
  apply(stored());
  addEventListener("DOMContentLoaded", () => {
    const select = document.getElementById("theme");
    select.value = stored();
    select.addEventListener("change", () => {
      localStorage.setItem("theme", select.value);
      apply(select.value);
    });
  });
}
